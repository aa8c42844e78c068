/* A minimal ARP responder for one address on one interface: what `make bench-latency` measures the speaker by. The same kind of
 * socket as the speaker's (AF_PACKET, raw, bound to the interface and to ARP, with a classic BPF program attached before), and
 * nothing else: no checks beyond the program's, no snapshot, no fence. Usage: responder INTERFACE ADDRESS */
#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static int fail(const char *what) {
    perror(what);
    return 1;
}

int main(int argc, char **argv) {
    struct in_addr address;
    if (argc != 3 || inet_pton(AF_INET, argv[2], &address) != 1) {
        fprintf(stderr, "usage: %s INTERFACE ADDRESS\n", argv[0]);
        return 2;
    }
    int fd = socket(AF_PACKET, SOCK_RAW, 0);
    if (fd < 0)
        return fail("socket");
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, SKF_AD_OFF + SKF_AD_PKTTYPE),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PACKET_OUTGOING, 7, 0),
        BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 12),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETHERTYPE_ARP, 0, 5),
        BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 20),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 38),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ntohl(address.s_addr), 0, 1),
        BPF_STMT(BPF_RET | BPF_K, 0x40000),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program))
        return fail("filter");
    struct ifreq request;
    memset(&request, 0, sizeof request);
    strncpy(request.ifr_name, argv[1], IFNAMSIZ - 1);
    if (ioctl(fd, SIOCGIFHWADDR, &request))
        return fail("the MAC address");
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_protocol = htons(ETHERTYPE_ARP)};
    to.sll_ifindex = if_nametoindex(argv[1]);
    if (bind(fd, (struct sockaddr *)&to, sizeof to))
        return fail("bind");
    unsigned char mac[6], frame[2048];
    memcpy(mac, request.ifr_hwaddr.sa_data, 6);
    for (;;) {
        if (recv(fd, frame, sizeof frame, 0) < 42)
            continue;
        memcpy(frame, frame + 22, 6);      /* to who asked */
        memcpy(frame + 6, mac, 6);
        frame[21] = 2;                     /* a reply */
        memcpy(frame + 32, frame + 22, 10); /* target: who asked */
        memcpy(frame + 22, mac, 6);
        memcpy(frame + 28, &address.s_addr, 4);
        if (send(fd, frame, 42, 0) < 0)
            perror("send");
    }
}
